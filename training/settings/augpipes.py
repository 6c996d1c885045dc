"""What `--augpipe` chooses: the augmentations of each pipeline (ADA paper, section 2.2)."""

from typing import Any

GROUPS = {
    "blit": ("xflip", "rotate90", "xint"),
    "geom": ("scale", "rotate", "aniso", "xfrac"),
    "color": ("brightness", "contrast", "lumaflip", "hue", "saturation"),
    "filter": ("imgfilter",),
    "noise": ("noise",),
    "cutout": ("cutout",),
}
AUGPIPES = {
    **GROUPS,
    "bg": (*GROUPS["blit"], *GROUPS["geom"]),
    "bgc": (*GROUPS["blit"], *GROUPS["geom"], *GROUPS["color"]),
}
AUGPIPES["bgcf"] = (*AUGPIPES["bgc"], *GROUPS["filter"])
AUGPIPES["bgcfn"] = (*AUGPIPES["bgcf"], *GROUPS["noise"])
AUGPIPES["bgcfnc"] = (*AUGPIPES["bgcfn"], *GROUPS["cutout"])


def augment_kwargs(name: str) -> dict[str, Any]:
    """Arguments of `AugmentPipe` for pipeline `name`: every augmentation in it at strength 1."""
    return dict.fromkeys(AUGPIPES[name], 1)
