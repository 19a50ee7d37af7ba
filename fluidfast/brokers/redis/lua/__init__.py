"""The scripts, one .lua file a verb. ``fluidfast.brokers.redis.scripts`` loads them."""
