"""Whether an outside file's head is whole: a bias beside its weight, unless somebody says that it never had one.

A head that lost its bias gives other logits and looks like one that was made without, so it is not guessed which it is.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

from adapterpack.errors import CorruptFileError, Reason

NO_BIAS = "none"
_SAID = "--set head_bias=none (settings={'head_bias': 'none'})"


def require_bias(roles: Container[str], name: str, settings: Mapping[str, Any], more: str = "") -> None:
    """Refuse a head's weight without its bias.

    Args:
        roles: what the file has of the head.
        name: of the bias there.
        settings: as `settings.combine` gives them; `head_bias` says that there is none.
        more: what else the caller may do.

    Raises:
        CorruptFileError: `missing-tensor`; `conflicting-settings` for a bias that is said not to be there.
    """
    there, none = "bias" in roles, settings.get("head_bias") == NO_BIAS
    if there and none:
        message = f"{name} is in the file, and head_bias is none in the settings"
        raise CorruptFileError(message, Reason.CONFLICTING_SETTINGS, hint="leave the setting out, or the tensor")
    if not there and not none:
        hint = f"save the head whole; of a head that was made without a bias, say so: {_SAID}{more}"
        message = f"{name} is missing beside the head's weight"
        raise CorruptFileError(message, Reason.MISSING_TENSOR, hint=hint)
