"""`init`: a recipe for data that nobody has described. Looked at, decided by rules that can be read, written down.

draft      from what the user names to a recipe file
folders, tables, hub    what lies there, and which data part reads it
columns    which columns of a table are targets
images     sizes of the images, and whether they can be read
machine, networks       the hardware; networks that suit it, and whose weights are on disk
rules      all rules that turn numbers into settings
recipe_text, summary    the recipe file; the words on the screen
"""
