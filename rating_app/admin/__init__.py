"""The organisers' pages under /admin: server-rendered, with a cookie, a policy and forms of their own."""

from rating_app.admin.app import mount_admin

__all__ = ["mount_admin"]
