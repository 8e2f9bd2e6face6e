"""Small layer problems solved to the proven optimum, and bounded by a certificate where they are not."""
