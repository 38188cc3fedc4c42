package config

// ReservedParams are the names that a client's params may not have.
func ReservedParams() []string {
	var names []string
	for _, p := range reservedParams {
		names = append(names, p.name)
	}
	return names
}

// Presets are the names of all there are, sorted.
func Presets() []string { return valuesOf("presets") }

// ValuesOf returns a list that a jsonschema tag names.
func ValuesOf(list string) []string { return valuesOf(list) }

// PresetsWithEndpoint are the presets that know the token endpoint, sorted.
func PresetsWithEndpoint() (names []string) {
	for _, name := range Presets() {
		if presets()[name].TokenURL != "" {
			names = append(names, name)
		}
	}
	return names
}
