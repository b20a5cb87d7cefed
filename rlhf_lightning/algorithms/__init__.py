"""The learning algorithms as LightningModules: a forward and a loss each; the loops are Lightning's."""
