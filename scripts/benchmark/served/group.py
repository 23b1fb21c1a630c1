"""Django Channels: a consumer in a group, over the Redis layer."""

from __future__ import annotations

import os
from typing import Any

import django
from channels.generic.websocket import AsyncWebsocketConsumer
from django.conf import settings

__all__ = ["app"]

# Of the two layers for Redis this is the one that needs less than half of the CPU time.
_LAYER = "channels_redis.pubsub.RedisPubSubChannelLayer"
settings.configure(
    INSTALLED_APPS=["channels"],
    CHANNEL_LAYERS={
        "default": {"BACKEND": _LAYER, "CONFIG": {"hosts": [os.environ["BENCH_REDIS"]]}}
    },
)
django.setup()


class Member(AsyncWebsocketConsumer):
    """One client in the group."""

    groups = ("room",)

    async def receive(self, text_data: str | None = None, **_: object) -> None:
        """Pass on what this client says."""
        await self.channel_layer.group_send("room", {"type": "room.said", "text": text_data})

    async def room_said(self, event: dict[str, Any]) -> None:
        """Tell this client what somebody said."""
        await self.send(text_data=event["text"])


app = Member.as_asgi()
