"""Tests of the reference trainer; a package, so that its file names may repeat other folders'."""
