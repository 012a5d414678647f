"""Patches the standard library for gevent; to be imported before anything that uses sockets."""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()
