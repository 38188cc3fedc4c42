package yamlconf

import "reflect"

// Adopt copies the values of keys that are not given from a preset. The members of a
// struct are copied one by one.
func Adopt[C any](into *C, preset C, given func(key string) bool) {
	adoptFields(reflect.ValueOf(into).Elem(), reflect.ValueOf(preset), "", given)
}

func adoptFields(to, from reflect.Value, path string, given func(key string) bool) {
	for i := range from.NumField() {
		key := Join(path, from.Type().Field(i).Tag.Get("yaml"))
		switch {
		case from.Field(i).IsZero():
		case from.Field(i).Kind() == reflect.Struct:
			adoptFields(to.Field(i), from.Field(i), key, given)
		case !given(key):
			to.Field(i).Set(from.Field(i))
		}
	}
}
