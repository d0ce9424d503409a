"""`python -m bench guard`: did the last change make a stage slower than this machine lets it be?

Every stage is measured against a *reference*: the same work on the same images, written by hand without our code, run a
tenth of a second later. What the machine does to one it does to the other, so their ratio stays when a core is slower,
shared or warmer, and a committed baseline of ratios means something on the next run of the same class of machine.
"""
