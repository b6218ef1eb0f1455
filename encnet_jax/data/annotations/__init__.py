"""Polygons and masks of annotation tools, imported as a data set `folder`."""
