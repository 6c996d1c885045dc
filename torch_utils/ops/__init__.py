"""Image operators of StyleGAN2-ADA; each one can be differentiated twice."""
