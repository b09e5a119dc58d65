"""The command `init`: a recipe for data that nobody has described, by rules that can be read.

draft                   all steps from what the user names to a recipe file
folders, tables, hub    the data that lie there, and the data part that reads them
columns                 the columns of a table that are targets
images                  the sizes of the images, and how many cannot be read
machine, networks       the hardware; the networks that suit it, and whose weights are on disk
rules                   all rules that turn numbers into settings
recipe_text, summary    the recipe file; the words on the screen
"""
