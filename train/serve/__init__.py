"""A trained network behind HTTP: uploads are limited, decoded in threads, and run in batches by one thread.

Needs the extra feedline[serve].
"""
