"""The training core: three published methods and their baselines on any timm ViT, in any bit width."""
