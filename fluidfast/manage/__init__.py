"""The objects that people make: manager, consumer, scheduler, the synchronous face, dead runs."""
