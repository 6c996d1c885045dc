"""CoopInit (Zhao, Xie, Li, AAAI 2023): cooperative initialisation of GANs.

Depends on torch alone, so that this folder can be copied into another trainer; see README.md.
"""

from coopinit_patch.langevin import langevin as langevin
from coopinit_patch.langevin import noise_levels as noise_levels
from coopinit_patch.loss import CoopInitLoss as CoopInitLoss
