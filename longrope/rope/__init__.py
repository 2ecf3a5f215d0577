"""Ground floor: factors, published formulas and the rotary embedding. Knows nothing of search or training."""
