"""What setup.cfg can't declare: the extension, which is optional. Everything else is there."""

import os

from setuptools import Extension, setup

# Without a compiler, or with RTMPD_PURE=1, rtmpd is pure Python.
_EXTENSIONS = [Extension("rtmpd._fast", ["rtmpd/_fast.pyx"], optional=True)]

setup(ext_modules=[] if os.environ.get("RTMPD_PURE") == "1" else _EXTENSIONS)
