"""Everything that goes over a network: published weights, data sets, and the folder that stands for it offline."""
