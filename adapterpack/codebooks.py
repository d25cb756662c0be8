"""Codebooks: the levels that quantized codes stand for, by name and bit width.

A codebook is symmetric; the tables hold the positive half as float32 bit patterns, innermost level first, and they are
the format: nothing recomputes them, because a libm that rounds differently would change every weight.
`spec/make_codebooks.py` shows where they come from.

- `normal-l1`: minimises E|u − Q(u)| for a standard normal u (each level the median of its cell), 1 to 8 bits.
- `normal-l1-500`: what 500 iterations from zero give at 8 bits, which is what the public 1-bit-adapter code stores.
- `unit`: −1 and +1.

Source: Jie et al. 2023, the quantizer of `binary_adapter`; spec/codecs.md, "Codebooks".
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

# fmt: off
_POSITIVE_HALVES = {
    ("unit", 1): "3f800000",
    ("normal-l1", 1): (
        "3f2cab5c"
    ),
    ("normal-l1", 2): (
        "3ec168fe 3fa20320"
    ),
    ("normal-l1", 3): (
        "3e4f7c9d 3f201b82 3f8e8eab 3fe56114"
    ),
    ("normal-l1", 4): (
        "3dd82ac0 3ea358b0 3f0a422a 3f4672fd 3f845a52 3faaa33e 3fda9725 4010fdcc"
    ),
    ("normal-l1", 5): (
        "3d5d277e 3e263072 3e8b0976 3ec3d288 3efdd6e0 3f1cc46e 3f3bb897 3f5c1cc5 3f7e5ea0 3f91890e "
        "3fa5848f 3fbbc00d 3fd53df1 3ff3d6b2 400dc9cb 402c795f"
    ),
    ("normal-l1", 6): (
        "3cdfe271 3da7ff42 3e0c2333 3e447ce6 3e7d232e 3e9b16aa 3eb7d9de 3ed4e81c 3ef24f30 3f080efd "
        "3f17325b 3f269a9e 3f3651af 3f4662b0 3f56da3b 3f67c6c2 3f7938ff 3f85a244 3f8f0050 3f98c49f "
        "3fa30048 3fadc889 3fb93857 3fc572b1 3fd2a656 3fe113e0 3ff11887 4001a145 400c3e17 40193a25 "
        "402a6e9d 40459958"
    ),
    ("normal-l1", 7): (
        "3c61554e 3d29056f 3d8ce2f7 3dc550e4 3dfdd204 3e1b35f5 3e37921e 3e540058 3e70838d 3e868f5a "
        "3e94ea6b 3ea35489 3eb1cf4c 3ec05c5a 3ecefd67 3eddb436 3eec829a 3efb6a7c 3f0536eb 3f0cc75f "
        "3f1467af 3f1c1901 3f23dc89 3f2bb38b 3f339f62 3f3ba17a 3f43bb59 3f4bee9e 3f543d04 3f5ca869 "
        "3f6532cb 3f6dde54 3f76ad59 3f7fa263 3f84601a 3f8904e6 3f8dc13e 3f9296f2 3f978803 3f9c96ac "
        "3fa1c566 3fa716f7 3fac8e7f 3fb22f85 3fb7fe0e 3fbdfeb4 3fc436c7 3fcaac73 3fd166f6 3fd86ee5 "
        "3fdfce86 3fe7924e 3fefc98f 3ff8876f 4000f22c 4006000d 400b82ac 40119797 4018698c 402039ee "
        "402974a4 4034e096 4044339f 405cc15b"
    ),
    ("normal-l1", 8): (
        "3be21640 3ca99211 3d0d515a 3d45dd1e 3d7e6db6 3d9b8242 3db7d177 3dd4252b 3df07e12 3e066e70 "
        "3e14a125 3e22d783 3e3111e7 3e3f50ac 3e4d942f 3e5bdcd0 3e6a2aed 3e787ee5 3e836c8d 3e8a9cf7 "
        "3e91d0e3 3e990882 3ea04407 3ea783a7 3eaec796 3eb61008 3ebd5d35 3ec4af53 3ecc069a 3ed36344 "
        "3edac58a 3ee22da7 3ee99bd9 3ef1105c 3ef88b70 3f0006aa 3f03cb26 3f07934c 3f0b5f40 3f0f2f25 "
        "3f13031e 3f16db51 3f1ab7e4 3f1e98fd 3f227ec6 3f266967 3f2a590b 3f2e4ddd 3f32480a 3f3647c2 "
        "3f3a4d32 3f3e588e 3f426a08 3f4681d5 3f4aa02a 3f4ec541 3f52f154 3f5724a0 3f5b5f62 3f5fa1dd "
        "3f63ec53 3f683f0c 3f6c9a4f 3f70fe6a 3f756bab 3f79e265 3f7e62ee 3f8176d0 3f83c16c 3f86117c "
        "3f886735 3f8ac2cc 3f8d2479 3f8f8c77 3f91fb06 3f947066 3f96ecdd 3f9970b3 3f9bfc36 3f9e8fb6 "
        "3fa12b89 3fa3d00b 3fa67d9b 3fa934a1 3fabf588 3faec0c5 3fb196d4 3fb47838 3fb76580 3fba5f42 "
        "3fbd6622 3fc07ace 3fc39e04 3fc6d08e 3fca134b 3fcd6729 3fd0cd2d 3fd44674 3fd7d434 3fdb77c2 "
        "3fdf3297 3fe30650 3fe6f4b9 3feaffd1 3fef29d4 3ff37543 3ff7e4ef 3ffc7c0d 40009f22 400317e2 "
        "4005aab3 40085a65 400b2a4b 400e1e52 40113b30 4014869e 401807a9 401bc721 401fd049 402431d0 "
        "4028ff6d 402e5478 40345892 403b486a 40438851 404dd179 405bbc60 40724403"
    ),
    ("normal-l1-500", 8): (
        "25a06c99 2682583c 270c5f06 27875ba1 27e91dce 2844c534 28a56ffe 29075ba1 295e7698 29b4f27e "
        "2a12cb5f 2a6df918 2ac01205 2b1a8c9f 2b77c8bc 2bc5ecfc 2c1d7799 2c7990f1 2cc4fb18 2d1ad9b3 "
        "2d727ca6 2dbd1620 2e12d84c 2e6326f5 2eaef8be 2f063a95 2f4d1b52 2f9c113f 2fec8a26 30328638 "
        "308630f9 30c8eacf 3115cd51 315e7a80 31a48a23 31f26599 3231d3f1 3281eefe 32bd1d29 3309126b "
        "3345e7eb 338e4c16 33cbcf22 34115f65 344e8e17 349228af 34ce059f 35109ff1 354a3e66 358cd94a "
        "35c36813 36070351 3639d56d 367ec6ab 36adf5db 36eca033 37204d11 375856e4 379169ab 37c2b711 "
        "3801dbb6 382c88b9 386457e5 3896841a 38c5a932 390148c0 392877ff 395aaeeb 398d62e0 39b61ea7 "
        "39e9b065 3a155b48 3a3e2f92 3a7140d3 3a986f2e 3abfe5de 3af0a9bd 3b1656f9 3b3b1f7c 3b680791 "
        "3b8f5108 3bb0615b 3bd842e8 3c04160d 3c20bfda 3c42e884 3c6b7405 3c8db156 3ca9e983 3ccb01cb "
        "3cf1aa2a 3d0f51fb 3d296125 3d477521 3d6a0980 3d88d159 3d9f66e7 3db91014 3dd61b6e 3df6db1c "
        "3e0dd243 3e226803 3e395c47 3e52ddb0 3e6f1bf6 3e8723ee 3e9849a4 3eab18c1 3ebfabc7 3ed61e6f "
        "3eee8e1d 3f048d46 3f12f359 3f228d06 3f337121 3f45bac3 3f598ae7 3f6f0ab9 3f833776 3f8ffe69 "
        "3f9e0920 3fad9954 3fbf0f06 3fd2fe36 3fea5c8c 40037832 40165182 4033cf17"
    ),
}
# fmt: on


def is_codebook(name: str, bits: int) -> bool:
    """Whether this version knows the codebook."""
    return (name, bits) in _POSITIVE_HALVES


@cache
def levels_of(name: str, bits: int) -> NDArray[np.float32]:
    """The levels in ascending order, float32 [2**bits], read-only.

    Raises:
        KeyError: no such codebook; readers ask `is_codebook` first.
    """
    words = [int(word, 16) for word in _POSITIVE_HALVES[name, bits].split()]
    half = np.array(words, np.uint32).view(np.float32)
    levels = np.concatenate([-half[::-1], half])
    levels.flags.writeable = False
    return levels


def nearest(units: NDArray[np.floating], levels: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Index of the nearest level for each normalised weight, a tie going to the lower index: uint8 [n]."""
    thresholds = (levels[1:].astype(np.float64) + levels[:-1]) / 2
    return np.searchsorted(thresholds, units, side="left").astype(np.uint8)
