"""The smallest I-JEPA that works: one idea a module, one module a chapter."""
