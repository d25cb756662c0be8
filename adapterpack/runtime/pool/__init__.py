"""Many tasks on one frozen backbone: packed while they wait, mixed in one batch, or folded one at a time."""
