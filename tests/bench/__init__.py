"""`make bench`: what the kit costs beside painting and training, a module for each part."""
