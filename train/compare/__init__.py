"""Runs beside each other: figures, settings that differ, and whether differences in accuracy could be chance."""
