"""Everything that comes over a network: published weights and data sets, and the folder that replaces it offline."""
