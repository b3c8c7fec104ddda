"""One file a programming model, one function a strategy, from plain to clever: read each from top to bottom."""
