"""The demo's fictional world: invented substances, recipes and towns, an exact judge, and datasets in the public layouts.

`datasets.write_world` writes a world's data folder.
"""
