"""The study: measure one point, store it, sweep a grid of points, draw the figures."""
