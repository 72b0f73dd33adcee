"""The demo's fictional world: invented substances, recipes and towns, with an exact judge, in the public datasets' layouts.

`datasets.write_world` writes a world's data folder.
"""
