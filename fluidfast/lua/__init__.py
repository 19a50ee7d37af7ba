"""The scripts, one .lua file a verb. ``fluidfast.scripts`` loads them."""
