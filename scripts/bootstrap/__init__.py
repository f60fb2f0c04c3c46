"""What course.py does. Standard library only; `pins` is readable by every Python there is."""
