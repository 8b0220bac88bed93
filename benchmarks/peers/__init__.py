"""Code of others that runs beside jaxsim; each file imports its library when it is called."""
