// A chain of LANES DSP48E2: dots[k] = sum over lanes of x[k][i] * w[i], LANES + 2 cycles later.
//
// PAIR: two pixels in one multiplication, ((x1 << 18) + x0) * w = (x1 * w << 18) + x0 * w. The
// lower sum is exact in its 18 bits for up to four products, 4 * 255 * 128 < 2**17; where it is
// negative it has borrowed one from the upper sum, which its sign bit gives back.
//
// The operands of lane i are delayed by i cycles, so that every adder is the one inside the DSP
// (PCIN): no adder of the chain is made of LUTs.
module lichen_mac_chain #(
    parameter int LANES = 4,
    parameter int X_BITS = 8,
    parameter bit X_SIGNED = 1'b1,
    parameter bit PAIR = 1'b1,
    parameter int OUT_BITS = 19
) (
    input  logic                                          clk,
    input  logic [(PAIR ? 2 : 1)*LANES*X_BITS-1:0]        x,  // pixel-major
    input  logic [LANES*8-1:0]                            w,
    output logic signed [(PAIR ? 2 : 1)*OUT_BITS-1:0]     dots
);
  logic [48*(LANES+1)-1:0] cascade;  // the running sum before and behind each DSP
  logic signed [47:0] total;
  assign cascade[47:0] = '0;
  assign total = $signed(cascade[48*LANES+:48]);

  generate
    for (genvar i = 0; i < LANES; i++) begin : lane
      logic signed [X_BITS:0] low;
      logic signed [26:0] operand;
      logic signed [7:0] weight;
      assign weight = w[i*8+:8];
      assign low = $signed({X_SIGNED & x[i*X_BITS+X_BITS-1], x[i*X_BITS+:X_BITS]});
      if (PAIR) begin : two
        logic signed [X_BITS:0] high;
        assign high = $signed(
            {X_SIGNED & x[(LANES+i)*X_BITS+X_BITS-1], x[(LANES+i)*X_BITS+:X_BITS]});
        assign operand = (27'(high) <<< 18) + 27'(low);
      end else begin : one
        assign operand = 27'(low);
      end
      lichen_mac_dsp #(.WAIT(i), .START(i == 0), .STOP(i == LANES - 1)) dsp (
          .clk(clk),
          .a(operand),
          .b(weight),
          .c(cascade[48*i+:48]),
          .p(cascade[48*(i+1)+:48])
      );
    end

    if (PAIR) begin : split
      logic signed [17:0] low_sum;
      assign low_sum = $signed(total[17:0]);
      assign dots[OUT_BITS-1:0] = OUT_BITS'(low_sum);
      assign dots[2*OUT_BITS-1:OUT_BITS] =
          OUT_BITS'(total >>> 18) + OUT_BITS'({1'b0, low_sum[17]});
    end else begin : whole
      assign dots = OUT_BITS'(total);
    end
  endgenerate
endmodule

// One DSP48E2 (UG579): p = a * b + c, with registers A, B, M and P; `a` and `b` wait WAIT cycles
// before. Synthesis with LICHEN_DSP48E2 instantiates the primitive, for c its cascade input.
module lichen_mac_dsp #(
    parameter int WAIT = 0,
    parameter bit START = 1'b0,  // the first of its chain: c is not used
    parameter bit STOP = 1'b0    // the last: p leaves the column of DSPs
) (
    input  logic               clk,
    input  logic signed [26:0] a,
    input  logic signed [7:0]  b,
    input  logic        [47:0] c,
    output logic        [47:0] p
);
  logic signed [26:0] a_late;
  logic signed [7:0] b_late;
  generate
    if (WAIT == 0) begin : now
      assign a_late = a;
      assign b_late = b;
    end else begin : later
      logic signed [26:0] a_wait[WAIT];
      logic signed [7:0] b_wait[WAIT];
      always_ff @(posedge clk) begin
        a_wait[0] <= a;
        b_wait[0] <= b;
        for (int k = 1; k < WAIT; k++) begin
          a_wait[k] <= a_wait[k-1];
          b_wait[k] <= b_wait[k-1];
        end
      end
      assign a_late = a_wait[WAIT-1];
      assign b_late = b_wait[WAIT-1];
    end
  endgenerate

`ifdef LICHEN_DSP48E2
  logic [47:0] sum, cascaded;
  assign p = STOP ? sum : cascaded;
  // OPMODE: X = Y = M; Z = 0 or PCIN. Registers: one each for A, B, M, P.
  DSP48E2 #(
      .AREG(1), .ACASCREG(1), .BREG(1), .BCASCREG(1), .CREG(0), .DREG(0), .ADREG(0),
      .MREG(1), .PREG(1), .OPMODEREG(0), .ALUMODEREG(0), .INMODEREG(0),
      .CARRYINREG(0), .CARRYINSELREG(0), .AMULTSEL("A"), .BMULTSEL("B"), .USE_MULT("MULTIPLY")
  ) dsp (
      .CLK(clk),
      .A({{3{a_late[26]}}, a_late}),
      .B({{10{b_late[7]}}, b_late}),
      .C('1), .D('0), .PCIN(START ? 48'd0 : c),
      .OPMODE(START ? 9'b000000101 : 9'b000010101), .ALUMODE(4'b0000), .INMODE(5'b00000),
      .CARRYIN(1'b0), .CARRYINSEL(3'b000),
      .CEA1(1'b0), .CEA2(1'b1), .CEB1(1'b0), .CEB2(1'b1), .CEM(1'b1), .CEP(1'b1),
      .CEC(1'b0), .CED(1'b0), .CEAD(1'b0), .CEALUMODE(1'b0), .CECTRL(1'b0),
      .CECARRYIN(1'b0), .CEINMODE(1'b0),
      .RSTA(1'b0), .RSTB(1'b0), .RSTC(1'b0), .RSTD(1'b0), .RSTM(1'b0), .RSTP(1'b0),
      .RSTCTRL(1'b0), .RSTALLCARRYIN(1'b0), .RSTALUMODE(1'b0), .RSTINMODE(1'b0),
      .ACIN('0), .BCIN('0), .CARRYCASCIN(1'b0), .MULTSIGNIN(1'b0),
      .P(sum), .PCOUT(cascaded)
  );
`else
  logic signed [26:0] a_held;
  logic signed [7:0] b_held;
  logic signed [47:0] product;
  always_ff @(posedge clk) begin
    a_held <= a_late;
    b_held <= b_late;
    product <= 48'(a_held) * 48'(b_held);
    p <= product + (START ? '0 : c);
  end
`endif
endmodule
