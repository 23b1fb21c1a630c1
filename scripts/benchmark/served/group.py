"""Django Channels: a consumer in a group, over the Redis layer."""

from __future__ import annotations

import os
from typing import Any

import django
from channels.generic.websocket import AsyncWebsocketConsumer
from channels.routing import ProtocolTypeRouter, URLRouter
from django.conf import settings
from django.urls import path

__all__ = ["room"]

settings.configure(
    ALLOWED_HOSTS=["*"],
    INSTALLED_APPS=["channels"],
    CHANNEL_LAYERS={
        "default": {
            # Of its two layers the one that needs less than half of the CPU time.
            "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
            "CONFIG": {"hosts": [os.environ["BENCH_REDIS"]]},
        }
    },
)
django.setup()


class Member(AsyncWebsocketConsumer):
    """One client in the group."""

    async def connect(self) -> None:
        """Join."""
        await self.channel_layer.group_add("room", self.channel_name)
        await self.accept()

    async def disconnect(self, _code: int) -> None:
        """Leave."""
        await self.channel_layer.group_discard("room", self.channel_name)

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        """Pass on what this client says."""
        del bytes_data
        await self.channel_layer.group_send("room", {"type": "room.said", "text": text_data})

    async def room_said(self, event: dict[str, Any]) -> None:
        """Tell this client what somebody said."""
        await self.send(text_data=event["text"])


room = ProtocolTypeRouter({"websocket": URLRouter([path("ws", Member.as_asgi())])})
