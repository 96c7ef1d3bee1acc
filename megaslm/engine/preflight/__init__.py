"""Before the first step: do the ranks and their hosts fit together, and which does not?"""
