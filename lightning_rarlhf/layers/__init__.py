"""A network's layers: found, cut short, frozen, and computed by faster kernels."""
