package main

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// picture is a column of panels that share a title.
type picture struct {
	title  string
	panels []panel
}

// panel is a chart with lines.
type panel struct {
	x, y  axis
	lines []line
}

type axis struct {
	label string
	log   bool
}

type line struct {
	name   string
	points []point
}

type point struct{ x, y float64 }

// The layout, in pixels.
const (
	width       = 790
	titleHeight = 34
	panelHeight = 300
	left        = 70
	right       = 220 // for the legend
	top         = 14
	bottom      = 46
)

// style has colours that can be read on a light and on a dark page. Lines differ by colour
// and by dashes, so that they can be told apart without colours.
const style = `
text { font: 13px sans-serif; fill: #24292f }
.title { font-size: 15px; font-weight: bold }
.page { fill: #ffffff }
.grid { stroke: #d0d7de; stroke-width: 1 }
.line { fill: none; stroke-width: 2 }
.l0 { stroke: #0550ae } .l1 { stroke: #bc4c00; stroke-dasharray: 7 3 } .l2 { stroke: #1a7f37; stroke-dasharray: 2 3 }
.l3 { stroke: #8250df; stroke-dasharray: 10 3 2 3 } .l4 { stroke: #bf3989; stroke-dasharray: 14 4 } .l5 { stroke: #57606a; stroke-dasharray: 4 4 }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 }
.page { fill: #0d1117 }
.grid { stroke: #30363d }
.l0 { stroke: #79c0ff } .l1 { stroke: #ffa657 } .l2 { stroke: #7ee787 }
.l3 { stroke: #d2a8ff } .l4 { stroke: #ff9bce } .l5 { stroke: #b1bac4 }
}
`

const styles = 6

// drawing is an SVG in the making.
type drawing struct{ bytes.Buffer }

func (d *drawing) addf(format string, args ...any) { fmt.Fprintf(&d.Buffer, format+"\n", args...) }

func (d *drawing) text(x, y float64, attributes, text string) {
	d.addf(`<text x="%s" y="%s" %s>%s</text>`, number(x), number(y), attributes, escaped(text))
}

func escaped(text string) string {
	var out strings.Builder
	_ = xml.EscapeText(&out, []byte(text)) // a strings.Builder does not fail
	return out.String()
}

func number(value float64) string { return strconv.FormatFloat(math.Round(value*10)/10, 'f', -1, 64) }

func (p picture) svg() []byte {
	height := titleHeight + len(p.panels)*panelHeight
	var d drawing
	d.addf(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" role="img" aria-label="%s">`, width, height, escaped(p.title))
	d.addf("<style>%s</style>", style)
	d.addf(`<rect class="page" width="%d" height="%d"/>`, width, height)
	d.text(left, 22, `class="title"`, p.title)
	for i, one := range p.panels {
		d.addf(`<g transform="translate(0 %d)">`, titleHeight+i*panelHeight)
		one.draw(&d)
		d.addf("</g>")
	}
	d.addf("</svg>")
	return d.Bytes()
}

func (p panel) draw(d *drawing) {
	xs := p.scale(p.x, func(at point) float64 { return at.x }, left, width-right)
	ys := p.scale(p.y, func(at point) float64 { return at.y }, panelHeight-bottom, top)
	for _, tick := range xs.ticks() {
		at := number(xs.at(tick))
		d.addf(`<line class="grid" x1="%s" x2="%s" y1="%d" y2="%d"/>`, at, at, top, panelHeight-bottom)
		d.text(xs.at(tick), panelHeight-bottom+18, `text-anchor="middle"`, tickText(tick))
	}
	for _, tick := range ys.ticks() {
		at := number(ys.at(tick))
		d.addf(`<line class="grid" x1="%d" x2="%d" y1="%s" y2="%s"/>`, left, width-right, at, at)
		d.text(left-8, ys.at(tick)+4, `text-anchor="end"`, tickText(tick))
	}
	d.text((left+width-right)/2, panelHeight-8, `text-anchor="middle"`, p.x.label)
	d.addf(`<text transform="translate(16 %d) rotate(-90)" text-anchor="middle">%s</text>`, (top+panelHeight-bottom)/2, escaped(p.y.label))
	for i, one := range p.lines {
		class := fmt.Sprintf(`class="line l%d"`, i%styles)
		var points []string
		for _, at := range one.points {
			if (!p.x.log || at.x > 0) && (!p.y.log || at.y > 0) {
				points = append(points, number(xs.at(at.x))+","+number(ys.at(at.y)))
			}
		}
		d.addf(`<polyline %s points="%s"/>`, class, strings.Join(points, " "))
		y := float64(top + 16 + 20*i)
		d.addf(`<line %s x1="%d" x2="%d" y1="%s" y2="%s"/>`, class, width-right+12, width-right+42, number(y-4), number(y-4))
		d.text(width-right+48, y, "", one.name)
	}
}

// scale maps values to pixels.
type scale struct {
	low, high float64 // of the values; with log their logarithms
	from, to  float64 // pixels
	log       bool
}

// scale returns the scale of an axis, from round values that include all points.
func (p panel) scale(a axis, of func(point) float64, from, to float64) scale {
	s := scale{low: math.Inf(1), high: math.Inf(-1), from: from, to: to, log: a.log}
	for _, one := range p.lines {
		for _, at := range one.points {
			if value := of(at); !a.log || value > 0 {
				s.low, s.high = min(s.low, value), max(s.high, value)
			}
		}
	}
	switch {
	case s.low > s.high:
		s.low, s.high = 0, 1
	case a.log:
		s.low, s.high = math.Floor(math.Log10(s.low)), math.Ceil(math.Log10(s.high))
		s.high = max(s.high, s.low+1)
	default:
		s.low = 0
		s.high = max(s.high, 1)
		step := s.step()
		s.high = math.Ceil(s.high/step) * step
	}
	return s
}

func (s scale) at(value float64) float64 {
	if s.log {
		value = math.Log10(value)
	}
	return s.from + (value-s.low)/(s.high-s.low)*(s.to-s.from)
}

// step is the round distance of about five ticks.
func (s scale) step() float64 {
	rough := (s.high - s.low) / 5
	power := math.Pow(10, math.Floor(math.Log10(rough)))
	for _, factor := range []float64{1, 2, 5} {
		if rough <= factor*power {
			return factor * power
		}
	}
	return 10 * power
}

func (s scale) ticks() (all []float64) {
	if s.log {
		for exponent := s.low; exponent <= s.high; exponent++ {
			all = append(all, math.Pow(10, exponent))
		}
		return all
	}
	for value := s.low; value <= s.high*(1+1e-9); value += s.step() {
		all = append(all, value)
	}
	return all
}

func tickText(value float64) string {
	switch {
	case value >= 1e6:
		return strconv.FormatFloat(value/1e6, 'g', 3, 64) + "M"
	case value >= 1e4:
		return strconv.FormatFloat(value/1e3, 'g', 3, 64) + "k"
	default:
		return strconv.FormatFloat(value, 'g', 4, 64)
	}
}
