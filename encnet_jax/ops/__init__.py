"""How operations are computed: convolution, resizing, losses on resized logits."""
