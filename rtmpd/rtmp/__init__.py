"""One greenlet per connection: handshake, commands, publishing and playing.

A session decides nothing about policy: it asks the hub before it says Publish.Start or Play.Start.
"""
