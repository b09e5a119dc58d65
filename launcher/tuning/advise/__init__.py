"""`advise`: how good the features are at each depth of a backbone, what training from there costs, and a proposal."""
