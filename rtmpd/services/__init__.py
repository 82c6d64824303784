"""Services: what the server does with streams besides delivering them.

Each is one class, or one package, with the contract of contract.py. Services follow what happens through the hub's events. They
import the hub and what is below it, but never each other, the session or the daemon, which builds them.
"""
