"""What a service is asked to be: one frozen record that every part of it reads. Imports nothing that is slow."""

from __future__ import annotations

from dataclasses import dataclass

# The formats that are decoded. Others that Pillow knows start programs (EPS) or are read by few people and less tested.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")
MEGABYTE = 1_000_000


@dataclass(frozen=True, slots=True)
class Settings:
    """A service.

    Attributes:
        source: folder or URL whose `.apk` files are served.
        backbone: timm name, or path of a `.safetensors` file.
        name: of the application on the cluster.
        device: "auto", "cpu" or "cuda".
        memory_budget: bytes of inflated tasks a replica; None leaves it to the pool.
        check_fingerprint: False accepts any backbone of the right shape.
        replicas: copies of the backbone.
        cpus, gpus: what each replica reserves; gpus counts only where the device is a GPU.
        batch_size, batch_wait: most images a batch, and seconds that the first of them waits for more.
        max_queue: requests that may wait beyond those that the replicas hold; more are answered with 503.
        most_bytes, most_pixels: of one image; more is answered with 413, pixels before anything is decoded.
        most_seconds: that a request may take; more is answered with 504.
        watch_seconds: between two looks into the folder.
        token: what `add` and `remove` must carry; with "" they are answered where the request came to this machine's
            own name alone.
    """

    source: str
    backbone: str
    name: str = "adapterpack"
    device: str = "auto"
    memory_budget: int | None = None
    check_fingerprint: bool = True
    replicas: int = 1
    cpus: float = 1
    gpus: float = 1
    batch_size: int = 16
    batch_wait: float = 0.005
    max_queue: int = 128
    most_bytes: int = 20 * MEGABYTE
    most_pixels: int = 50 * MEGABYTE
    most_seconds: float = 60
    watch_seconds: float = 2
    token: str = ""

    @property
    def ongoing(self) -> int:
        """Requests that one replica holds: a batch that is computed, and the next one that gathers."""
        return 2 * self.batch_size

    @property
    def capacity(self) -> int:
        """Requests in hand at which the next one is refused."""
        return self.replicas * self.ongoing + self.max_queue
