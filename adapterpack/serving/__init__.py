"""Many tasks behind HTTP on Ray Serve, and many images through Ray Data. Nothing outside this package imports ray."""
