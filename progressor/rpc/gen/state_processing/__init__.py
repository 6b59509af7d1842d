__all__ = ['ttypes', 'constants', 'Processor', 'Modernizer', 'Automaton']
