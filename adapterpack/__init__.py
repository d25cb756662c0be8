"""adapterpack: many adapters on one frozen vision transformer, each one small, checked, self-describing file."""

__version__ = "0.1.0"
