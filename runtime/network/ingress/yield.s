// That there is assembly lets yield.go declare a function that is elsewhere.
