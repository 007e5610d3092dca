"""Tests of the package as it is installed, and of the tree it is made from."""
