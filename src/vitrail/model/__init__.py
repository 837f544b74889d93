"""The Vision Transformer: image -> patches -> tokens -> blocks -> pooled vector -> logits. Start reading in `vit.py`.

A tensor's name ends in the letters of its shape: B batch, T tokens, P patches, D width, N heads, K head width,
C channels, H W pixels, h w patch grid, R prefix tokens (class token, registers), S tokens attended to,
M hidden width of the MLP, Y classes.
"""
