"""Rescue what rounding alone loses: one technique a file. Chapter 11; 12 to 14 are to come."""
