"""The stages of README's flow table, one file each, and the parts they are made of."""
