"""The study behind `make study`: which adapter keeps how much accuracy in how many bytes, on small real tasks."""
